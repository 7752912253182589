"""What base models are made of: their files, autoencoder, text encoders and prompts."""

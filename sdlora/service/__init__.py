"""What the page and the command line ask for: datasets, runs, adapters, pictures; child processes."""

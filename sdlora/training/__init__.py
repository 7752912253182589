"""From a configuration to an adapter file, in a run folder."""

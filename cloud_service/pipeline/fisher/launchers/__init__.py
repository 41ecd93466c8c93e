"""Where the Fisher shards of one preparation are computed: in this process, or on a Ray cluster."""

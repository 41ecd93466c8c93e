"""The subcommands of ``zo-cloud``, one file each."""

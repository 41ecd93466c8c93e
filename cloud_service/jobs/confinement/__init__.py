"""What a job's process may see and touch: its own identity, file tree, network and limits. See ADR 0018."""

"""The bundle: an OCI-shaped manifest over raw blobs named by sha256. ``FORMAT.md`` beside this file is normative."""

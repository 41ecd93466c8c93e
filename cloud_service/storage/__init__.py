"""What the service keeps: the database, API keys and published bundles."""

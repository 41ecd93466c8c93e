"""What a preparation measured: a document in the bundle, and a page for the operator."""

"""The model as its makers published it: found, fetched, checked, and loaded or read tensor by tensor."""

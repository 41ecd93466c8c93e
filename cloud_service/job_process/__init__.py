"""The process of one job: where the orders of ``jobs`` meet the ``pipeline``, which the service never imports."""

"""Preparations as jobs: their record and its transitions, the lease, and the process that each one runs in."""

"""Measurements on a model that publish nothing: how much of a task a mask covers, and what each quantiser costs."""

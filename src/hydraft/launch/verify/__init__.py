"""``mode=verify`` of train.py: a few steps of a config beside the same steps of the plainest one."""

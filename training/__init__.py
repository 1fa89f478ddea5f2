"""What `train.py` is made of: fitting, measuring and reporting."""

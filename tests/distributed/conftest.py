"""What pytest leaves out."""

collect_ignore = ["zero_worker.py"]  # a program, which needs DeepSpeed when it is imported

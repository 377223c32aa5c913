"""What train, evaluate, search and predict mean. Started as `python -m trainer RUN_FOLDER`."""

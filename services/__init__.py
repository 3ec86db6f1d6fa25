"""What users reach: the command line, the Serve deployments, the terminal's progress."""

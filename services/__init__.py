"""What users reach: the command line, the REST routes on Ray Serve, the dashboard."""

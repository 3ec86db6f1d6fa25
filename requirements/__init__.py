"""What is installed: the locks, the program that makes them and the one that installs them."""

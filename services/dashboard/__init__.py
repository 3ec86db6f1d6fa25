"""The dashboard: a versioned JSON API over run directories, a live stream of each run, and the page that shows them."""

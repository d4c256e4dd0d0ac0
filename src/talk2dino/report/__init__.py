"""Pages and plots of results."""

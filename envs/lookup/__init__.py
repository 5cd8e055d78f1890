"""Questions to be answered by looking things up."""

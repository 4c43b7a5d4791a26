"""The process that speaks to the coordinator. It opens connections, takes none, and never imports torch."""

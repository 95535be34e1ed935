"""The node's composition root: builds the services, supervises their tasks, starts degraded, stops in order."""

"""The pages: read like the API, from `service.jobs`, and rendered on the server."""

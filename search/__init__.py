"""Finding a good network: from a spec to structures, weights and evidence."""

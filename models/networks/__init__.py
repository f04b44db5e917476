"""Networks over an injected linear layer."""

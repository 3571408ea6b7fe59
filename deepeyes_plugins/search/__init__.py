"""Text and image search: contracts, providers, broker, client and service."""

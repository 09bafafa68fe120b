"""Making a connection: addresses, settings, codecs."""

"""A Qdrant server as the engine, over REST or gRPC."""

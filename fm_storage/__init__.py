"""fm_storage: asyncio-native storage on PostgreSQL and Qdrant."""

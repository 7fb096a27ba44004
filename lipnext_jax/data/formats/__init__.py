"""The official archives as they are downloaded, read without trusting them."""

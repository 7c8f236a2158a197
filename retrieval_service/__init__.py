"""The retrieval process: a versioned FAISS index behind gRPC, and its client."""

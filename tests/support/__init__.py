"""What tests share: strategies, paths, mutations. Holds no test."""

"""The same measurements on a machine with a GPU that nothing outside can be reached from."""

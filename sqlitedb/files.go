package sqlitedb

// Files returns the paths of a database file and of the files that SQLite keeps beside it.
func Files(path string) []string {
	return []string{path, path + "-wal", path + "-shm", path + "-journal"}
}

// Package census counts which EDEKs of an HDFS need which version of which encryption-zone key, in an image of the
// namespace. It counts each EDEK that a path can reach: of live files, of files that only a snapshot shows, and of
// copies of a file's record that a snapshot holds. docs/census.md says what the counts mean.
//
// The image is read in this order, each section once unless noted. Only 6 bytes are kept for each inode; more is kept
// for folders, and for files with copies or with several places.
//
//  1. STRING_TABLE, SNAPSHOT and INODE_REFERENCE, which are small, and the header of INODE.
//  2. SNAPSHOT_DIFF: which inodes a folder lost since a snapshot, and copies of records of files.
//  3. INODE_DIR, twice: to count children, and to make the index from a child to its folder.
//  4. INODE: files are counted by folder and key version. Files with copies or with several places are kept.
//  5. Now the names and zones of all folders are known, and whether a folder is live, in a snapshot, or unreachable.
//     The counts of the folders are added up for each zone and version.
//
// # Reach
//
// A place of an inode is a child of a folder, or an entry in the list of what the folder lost since a snapshot S. The
// inode's reach is the newest state of the namespace that shows the inode: the current state, or a snapshot. The reach
// of a child of a folder is the reach of the folder. The reach of an entry in a list is the same, but at most S. An
// inode with several places has the newest of their reaches.
//
// A file's own record shows the file as it is now, and in each snapshot that is newer than all copies of the record. So
// if the file is deleted, its own EDEK is needed only if its reach is newer than its newest copy
// (AbstractINodeDiff.getSnapshotINode: a copy is used for its own snapshot and older ones).
package census

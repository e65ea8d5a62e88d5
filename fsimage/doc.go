// Package fsimage reads the file in which a NameNode saves its namespace: the fsimage of Hadoop 2.4 and later.
//
// The file has the magic bytes HDFSIMG1, the sections, an index (FileSummary), and the index's length in 4 bytes. A
// section is a sequence of protobuf messages, each after its length, and may be compressed as a whole. The package
// decodes only the fields that tell which keys encrypt which files: inodes, their extended attributes, the tree of
// directories, references and snapshots. It skips all others, also the secrets of delegation tokens.
//
// Messages are read in batches, and batches in parallel. Each length that the file states is checked against the data
// that are really there before memory is allocated for it. Damage is reported as an [Error], with section and byte.
//
// The sources of the format are FSImageFormatProtobuf.java, FSImageFormatPBSnapshot.java, fsimage.proto, hdfs.proto and
// XAttrFormat.java of Hadoop 3.4.2.
package fsimage

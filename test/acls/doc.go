// Package acls compares our rules with Hadoop's own. It generates kms-acls.xml files and thousands of requests, and
// compares the decisions of our code with those of the classes of hadoop-kms (KMSACLs, KeyAuthorizationKeyProvider).
package acls

// Package acls compares our rules with Hadoop's own: it generates kms-acls.xml files and thousands of questions
// about them, and asks the classes of hadoop-kms (KMSACLs, KeyAuthorizationKeyProvider) and ours.
package acls

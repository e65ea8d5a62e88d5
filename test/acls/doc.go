// Package acls holds our rules against Hadoop's own: thousands of generated
// questions about generated kms-acls.xml files are put to the classes of
// hadoop-kms (KMSACLs, KeyAuthorizationKeyProvider) and to ours.
package acls

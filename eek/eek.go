// Package eek is the arithmetic of encrypted data encryption keys: EDEK = DEK
// xor keystream, where the keystream is AES under the EZ key version of
// consecutive counter blocks that start at IV xor 0xff.. (Hadoop's CTR, see
// CryptoExtension in hadoop-common). Counter blocks in, keystream out: so any
// number of EDEKs of one version are one call to the provider, and no DEK ever
// goes near it.
package eek

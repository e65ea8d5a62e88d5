// Package kmswire reads and writes the JSON of Hadoop's KMS protocol, for a server
// and for a client. It knows no HTTP statuses and no rights.
//
// The results of readers share no memory with the body that was read, so the body may
// be wiped and used again.
//
// The shapes are those of org.apache.hadoop.crypto.key.kms.server.KMSUtil and
// KMSClientProvider (Hadoop 3.4). The output differs from Java's only in white space:
// it has none.
package kmswire

import (
	"fmt"
	"strings"

	"claviger"
	"claviger/secret"
)

// Version names of DEKs, which have no version.
const (
	EEK = "EEK" // an encrypted DEK
	EK  = "EK"  // a decrypted DEK
)

// Values of the query parameter eek_op.
const (
	OpGenerate  = "generate"
	OpDecrypt   = "decrypt"
	OpReencrypt = "reencrypt"
)

// Java classes of exceptions.
const (
	IOException              = "java.io.IOException"
	IllegalArgument          = "java.lang.IllegalArgumentException"
	InvalidParameter         = "java.security.InvalidParameterException"
	UnsupportedOperation     = "java.lang.UnsupportedOperationException"
	NullPointer              = "java.lang.NullPointerException"
	ClassCast                = "java.lang.ClassCastException"
	UndeclaredThrowable      = "java.lang.reflect.UndeclaredThrowableException"
	AuthorizationException   = "org.apache.hadoop.security.authorize.AuthorizationException"
	AccessControlException   = "org.apache.hadoop.security.AccessControlException"
	AuthenticationException  = "org.apache.hadoop.security.authentication.client.AuthenticationException"
	StandbyException         = "org.apache.hadoop.ipc.StandbyException"
	WebApplicationException  = "javax.ws.rs.WebApplicationException"
	NotFoundException        = "com.sun.jersey.api.NotFoundException"
	QueryParamException      = "com.sun.jersey.api.ParamException$QueryParamException"
	jsonParseException       = "com.fasterxml.jackson.core.JsonParseException"
	jsonEOFException         = "com.fasterxml.jackson.core.io.JsonEOFException"
	mismatchedInputException = "com.fasterxml.jackson.databind.exc.MismatchedInputException"
)

// Exception is the content of a RemoteException answer. Readers return it as the error
// for a body for which Hadoop's KMS would throw that exception. A client gets it from
// an answer.
type Exception struct {
	Class   string // full Java class name
	Message string
	// NoMessage means that the message is JSON null.
	NoMessage bool
}

// Throw builds an Exception.
func Throw(class, message string) *Exception { return &Exception{Class: class, Message: message} }

func (e *Exception) Error() string {
	if e.NoMessage {
		return e.Class
	}
	return e.Class + ": " + e.Message
}

// Simple returns the class name without its package, as in the field "exception".
func (e *Exception) Simple() string {
	return e.Class[strings.LastIndexAny(e.Class, ".$")+1:]
}

// required returns the exception of Hadoop's KMSClientProvider.checkNotNull.
func required(parameter string) *Exception {
	return Throw(IllegalArgument, "Parameter '"+parameter+"' cannot be null")
}

// Create is the body of POST /v1/keys.
type Create struct {
	Name        string
	Cipher      string // "" if absent or null
	Length      int    // 0 if absent or null
	Description *string
	Attributes  map[string]string // nil if absent
	Material    secret.Bytes      // nil if absent; empty if it is not base64
	// BadAttribute means that an attribute's value is not a string. Hadoop notices that
	// only when it stores the key, after all other checks.
	BadAttribute bool
}

// Roll is the body of POST /v1/key/{name}.
type Roll struct{ Material secret.Bytes }

// Open is the body of a decrypt or a single re-encrypt.
type Open struct {
	Name    string
	HasName bool
	IV      []byte // empty if it is not base64
	// Material is the encrypted DEK.
	Material []byte
}

// Batch is the body of a batch re-encryption.
type Batch []claviger.EDEK

// tooMany is the error for a list that is longer than the server's limit.
func tooMany(limit int) *Exception {
	return Throw(IllegalArgument, fmt.Sprintf("more than %d EDEKs in one request; send them in parts", limit))
}

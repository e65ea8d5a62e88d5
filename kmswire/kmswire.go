// Package kmswire is the JSON of Hadoop's KMS protocol, both ways: what a
// server reads and writes, and what a client does. It knows shapes, not
// statuses and not rights.
//
// What a reader returns shares no memory with the body that it read, so that a
// body may be wiped and used again.
//
// The shapes are those of org.apache.hadoop.crypto.key.kms.server.KMSUtil and
// KMSClientProvider (Hadoop 3.4). What is written differs from Java's in white
// space alone: there is none.
package kmswire

import (
	"fmt"
	"strings"

	"claviger"
	"claviger/secret"
)

// Names that stand where a version name stands, for things that have none.
const (
	EEK = "EEK" // a wrapped DEK
	EK  = "EK"  // an unwrapped one
)

// Values of the query parameter eek_op.
const (
	OpGenerate  = "generate"
	OpDecrypt   = "decrypt"
	OpReencrypt = "reencrypt"
)

// Java classes of exceptions that clients and tests look at.
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

// Exception is the content of a RemoteException answer. As an error it is what
// a decoder makes of a body that Hadoop's KMS would throw at, or what a client
// was answered.
type Exception struct {
	Class   string // full Java class name
	Message string
	// NoMessage: the message is JSON null.
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

// Simple is the class name without its package, as the field "exception" has
// it.
func (e *Exception) Simple() string {
	return e.Class[strings.LastIndexAny(e.Class, ".$")+1:]
}

// required is what Hadoop's KMSClientProvider.checkNotNull throws.
func required(parameter string) *Exception {
	return Throw(IllegalArgument, "Parameter '"+parameter+"' cannot be null")
}

// Create is the body of POST /v1/keys.
type Create struct {
	Name        string
	Cipher      string // "" where absent or null
	Length      int    // 0 where absent or null
	Description *string
	Attributes  map[string]string // nil where absent
	Material    secret.Bytes      // nil where absent; empty where it is no base64
	// BadAttribute: an attribute's value is no string. Hadoop notices only when it
	// stores the key, after all else was checked.
	BadAttribute bool
}

// Roll is the body of POST /v1/key/{name}.
type Roll struct{ Material secret.Bytes }

// Open is the body of a decrypt or a single re-encrypt.
type Open struct {
	Name    string
	HasName bool
	IV      []byte // empty where it is no base64
	// Material is the wrapped DEK.
	Material []byte
}

// Batch is the body of a batch re-encryption.
type Batch []claviger.EDEK

// tooMany refuses a list that is longer than the server takes.
func tooMany(most int) *Exception {
	return Throw(IllegalArgument, fmt.Sprintf("more than %d EDEKs in one request; send them in parts", most))
}

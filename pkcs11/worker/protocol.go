package worker

import (
	"errors"

	p11 "github.com/miekg/pkcs11"

	"claviger/pkcs11/cryptoki"
)

// Functions of the worker itself.
const (
	loadLibrary = "load"
	ping        = "ping"
)

// Request is a call of a function of the library. A function reads the fields that it needs.
type Request struct {
	Function   string // of functions, or loadLibrary or ping
	Path       string // of the library to load
	Session    p11.SessionHandle
	Object     p11.ObjectHandle
	Slot       uint
	Flags      uint
	User       uint
	PIN        string
	Present    bool
	Limit      int // of random bytes, or of handles
	Mechanisms []*p11.Mechanism
	Template   []*p11.Attribute
	Private    []*p11.Attribute // of the private key of a pair
	Padding    *p11.OAEPParams
	Data       []byte
}

// Response is the result of a call.
type Response struct {
	Loaded     bool
	Failed     bool
	Code       uint   // the CKR_ code of a failed call
	Text       string // the error of a failed call without a code
	Slots      []uint
	Token      p11.TokenInfo
	Info       p11.SessionInfo
	Mechanisms []*p11.Mechanism
	Session    p11.SessionHandle
	Objects    []p11.ObjectHandle
	More       bool
	Attributes []*p11.Attribute
	Data       []byte
}

// fail sets the error of a call.
func (r *Response) fail(err error) {
	var code p11.Error
	switch r.Failed = err != nil; {
	case errors.As(err, &code):
		r.Code = uint(code)
	case err != nil:
		r.Text = err.Error()
	}
}

// err returns the error that fail was given.
func (r *Response) err() error {
	switch {
	case !r.Failed:
		return nil
	case r.Text != "":
		return errors.New(r.Text)
	}
	return p11.Error(r.Code)
}

// functions makes the calls, by the name of the method of cryptoki.Boundary.
var functions = map[string]func(cryptoki.Boundary, *Request, *Response) error{
	"Initialize": func(b cryptoki.Boundary, _ *Request, _ *Response) error { return b.Initialize() },
	"Finalize":   func(b cryptoki.Boundary, _ *Request, _ *Response) error { return b.Finalize() },
	"GetSlotList": func(b cryptoki.Boundary, q *Request, r *Response) (err error) {
		r.Slots, err = b.GetSlotList(q.Present)
		return err
	},
	"GetTokenInfo": func(b cryptoki.Boundary, q *Request, r *Response) (err error) {
		r.Token, err = b.GetTokenInfo(q.Slot)
		return err
	},
	"GetMechanismList": func(b cryptoki.Boundary, q *Request, r *Response) (err error) {
		r.Mechanisms, err = b.GetMechanismList(q.Slot)
		return err
	},
	"OpenSession": func(b cryptoki.Boundary, q *Request, r *Response) (err error) {
		r.Session, err = b.OpenSession(q.Slot, q.Flags)
		return err
	},
	"CloseSession": func(b cryptoki.Boundary, q *Request, _ *Response) error { return b.CloseSession(q.Session) },
	"GetSessionInfo": func(b cryptoki.Boundary, q *Request, r *Response) (err error) {
		r.Info, err = b.GetSessionInfo(q.Session)
		return err
	},
	"Login": func(b cryptoki.Boundary, q *Request, _ *Response) error { return b.Login(q.Session, q.User, q.PIN) },
	"GenerateRandom": func(b cryptoki.Boundary, q *Request, r *Response) (err error) {
		r.Data, err = b.GenerateRandom(q.Session, q.Limit)
		return err
	},
	"GenerateKey": func(b cryptoki.Boundary, q *Request, r *Response) error {
		o, err := b.GenerateKey(q.Session, q.Mechanisms, q.Template)
		r.Objects = []p11.ObjectHandle{o}
		return err
	},
	"CreateObject": func(b cryptoki.Boundary, q *Request, r *Response) error {
		o, err := b.CreateObject(q.Session, q.Template)
		r.Objects = []p11.ObjectHandle{o}
		return err
	},
	"DestroyObject": func(b cryptoki.Boundary, q *Request, _ *Response) error {
		return b.DestroyObject(q.Session, q.Object)
	},
	"GetAttributeValue": func(b cryptoki.Boundary, q *Request, r *Response) (err error) {
		r.Attributes, err = b.GetAttributeValue(q.Session, q.Object, q.Template)
		return err
	},
	"FindObjectsInit": func(b cryptoki.Boundary, q *Request, _ *Response) error {
		return b.FindObjectsInit(q.Session, q.Template)
	},
	"FindObjects": func(b cryptoki.Boundary, q *Request, r *Response) (err error) {
		r.Objects, r.More, err = b.FindObjects(q.Session, q.Limit)
		return err
	},
	"FindObjectsFinal": func(b cryptoki.Boundary, q *Request, _ *Response) error {
		return b.FindObjectsFinal(q.Session)
	},
	"Encrypt": func(b cryptoki.Boundary, q *Request, r *Response) (err error) {
		r.Data, err = b.Encrypt(q.Session, q.Mechanisms[0], q.Object, q.Data)
		return err
	},
	"GenerateKeyPair": func(b cryptoki.Boundary, q *Request, r *Response) error {
		public, private, err := b.GenerateKeyPair(q.Session, q.Mechanisms, q.Template, q.Private)
		r.Objects = []p11.ObjectHandle{public, private}
		return err
	},
	"DecryptInit": func(b cryptoki.Boundary, q *Request, _ *Response) error {
		return b.DecryptInit(q.Session, q.Padding, q.Object)
	},
	"Decrypt": func(b cryptoki.Boundary, q *Request, r *Response) (err error) {
		r.Data, err = b.Decrypt(q.Session, q.Data)
		return err
	},
	"Sign": func(b cryptoki.Boundary, q *Request, r *Response) (err error) {
		r.Data, err = b.Sign(q.Session, q.Mechanisms[0], q.Object, q.Data)
		return err
	},
}

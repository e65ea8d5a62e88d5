package worker

import p11 "github.com/miekg/pkcs11"

// The methods below are those of cryptoki.Boundary.

func (c *client) GetSlotList(present bool) ([]uint, error) {
	r, err := c.do(&Request{Function: "GetSlotList", Present: present})
	return r.Slots, err
}

func (c *client) GetTokenInfo(slot uint) (p11.TokenInfo, error) {
	r, err := c.do(&Request{Function: "GetTokenInfo", Slot: slot})
	return r.Token, err
}

func (c *client) GetMechanismList(slot uint) ([]*p11.Mechanism, error) {
	r, err := c.do(&Request{Function: "GetMechanismList", Slot: slot})
	return r.Mechanisms, err
}

func (c *client) OpenSession(slot, flags uint) (p11.SessionHandle, error) {
	r, err := c.do(&Request{Function: "OpenSession", Slot: slot, Flags: flags})
	return r.Session, err
}

func (c *client) CloseSession(s p11.SessionHandle) error {
	_, err := c.do(&Request{Function: "CloseSession", Session: s})
	return err
}

func (c *client) GetSessionInfo(s p11.SessionHandle) (p11.SessionInfo, error) {
	r, err := c.do(&Request{Function: "GetSessionInfo", Session: s})
	return r.Info, err
}

func (c *client) Login(s p11.SessionHandle, user uint, pin string) error {
	_, err := c.do(&Request{Function: "Login", Session: s, User: user, PIN: pin})
	return err
}

func (c *client) GenerateRandom(s p11.SessionHandle, n int) ([]byte, error) {
	r, err := c.do(&Request{Function: "GenerateRandom", Session: s, Limit: n})
	return r.Data, err
}

func (c *client) GenerateKey(s p11.SessionHandle, m []*p11.Mechanism, a []*p11.Attribute) (p11.ObjectHandle, error) {
	r, err := c.do(&Request{Function: "GenerateKey", Session: s, Mechanisms: m, Template: a})
	return object(r, 0), err
}

func (c *client) CreateObject(s p11.SessionHandle, a []*p11.Attribute) (p11.ObjectHandle, error) {
	r, err := c.do(&Request{Function: "CreateObject", Session: s, Template: a})
	return object(r, 0), err
}

func (c *client) DestroyObject(s p11.SessionHandle, o p11.ObjectHandle) error {
	_, err := c.do(&Request{Function: "DestroyObject", Session: s, Object: o})
	return err
}

func (c *client) GetAttributeValue(s p11.SessionHandle, o p11.ObjectHandle,
	a []*p11.Attribute) ([]*p11.Attribute, error) {
	r, err := c.do(&Request{Function: "GetAttributeValue", Session: s, Object: o, Template: a})
	return r.Attributes, err
}

func (c *client) FindObjectsInit(s p11.SessionHandle, a []*p11.Attribute) error {
	_, err := c.do(&Request{Function: "FindObjectsInit", Session: s, Template: a})
	return err
}

func (c *client) FindObjects(s p11.SessionHandle, limit int) ([]p11.ObjectHandle, bool, error) {
	r, err := c.do(&Request{Function: "FindObjects", Session: s, Limit: limit})
	return r.Objects, r.More, err
}

func (c *client) FindObjectsFinal(s p11.SessionHandle) error {
	_, err := c.do(&Request{Function: "FindObjectsFinal", Session: s})
	return err
}

func (c *client) Encrypt(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, data []byte) ([]byte, error) {
	r, err := c.do(&Request{Function: "Encrypt", Session: s, Mechanisms: []*p11.Mechanism{m}, Object: key, Data: data})
	return r.Data, err
}

func (c *client) GenerateKeyPair(s p11.SessionHandle, m []*p11.Mechanism,
	public, private []*p11.Attribute) (p11.ObjectHandle, p11.ObjectHandle, error) {
	r, err := c.do(&Request{Function: "GenerateKeyPair", Session: s, Mechanisms: m, Template: public, Private: private})
	return object(r, 0), object(r, 1), err
}

func (c *client) DecryptInit(s p11.SessionHandle, padding *p11.OAEPParams, o p11.ObjectHandle) error {
	_, err := c.do(&Request{Function: "DecryptInit", Session: s, Padding: padding, Object: o})
	return err
}

func (c *client) Decrypt(s p11.SessionHandle, data []byte) ([]byte, error) {
	r, err := c.do(&Request{Function: "Decrypt", Session: s, Data: data})
	return r.Data, err
}

func (c *client) Sign(s p11.SessionHandle, m *p11.Mechanism, key p11.ObjectHandle, data []byte) ([]byte, error) {
	r, err := c.do(&Request{Function: "Sign", Session: s, Mechanisms: []*p11.Mechanism{m}, Object: key, Data: data})
	return r.Data, err
}

// object returns a handle of a response. A call that failed may have none.
func object(r *Response, i int) p11.ObjectHandle {
	if i >= len(r.Objects) {
		return 0
	}
	return r.Objects[i]
}

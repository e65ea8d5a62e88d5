package pages

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"net/url"
	"sync"
	"time"

	"claviger"
	"claviger/kmswire"
	"claviger/shellword"
)

// change holds the forms of a key's page, and the result of the last change.
type change struct {
	Done  string // the change that was made
	Error string // why nothing was changed

	MayRoll, MayUndelete bool
	Expect               string // the version that a roll must find as the current one
	Commands             []string
	Undeletes            []undeletion
}

// undeletion is the form that brings one deleted key back.
type undeletion struct {
	Version string // the newest of the deleted key
	Deleted time.Time
	Command string
}

// prepare fills in the forms that the user may use.
func (c *change) prepare(s *session, b *keyBody) {
	for _, r := range b.Rights {
		c.MayRoll = c.MayRoll || r.Operation == "ROLL_NEW_VERSION" && r.Allowed
		c.MayUndelete = c.MayUndelete || r.Operation == "UNDELETE_KEY" && r.Allowed
	}
	if b.Live != nil {
		c.Expect = b.Live.Current
		c.Commands = []string{shellword.Command("hadoop", "key", "roll", b.Name, "-provider", s.ProviderURI)}
	} else {
		c.MayRoll = false
	}
	for _, d := range b.Deleted {
		c.Undeletes = append(c.Undeletes, undeletion{d.Current, d.GoneAt, shellword.Command("claviger", "key",
			"undelete", b.Name, "--key-version", d.Current, "--provider", s.ProviderURI)})
	}
	if text, ok := s.results.take(s.r.URL.Query().Get("result"), s.user.Name); ok {
		c.Done = text
	}
}

// maxForm is the largest body of a form, in bytes: a name, each byte of which may be escaped.
const maxForm = 8 * claviger.MaxName

// form reads the form of a change. It answers, and returns false, if the typed name is not the key's name.
func (s *session) form() (key string, ok bool) {
	s.r.Body = http.MaxBytesReader(s.w, s.r.Body, maxForm)
	if err := s.r.ParseForm(); err != nil {
		s.show(http.StatusBadRequest, "message", "Not changed", 0, message{
			Lines: []string{"The form could not be read, so nothing was changed."}, Back: "/keys"})
		return "", false
	}
	key = s.r.URL.Query().Get("key") // not a field of the form: browsers change line ends there
	typed := s.r.PostForm.Get("typed")
	// A name with characters that cannot be seen is typed as the page shows it.
	if key == "" || typed != key && typed != claviger.Printable(key) {
		s.showKey(http.StatusUnprocessableEntity, key, change{
			Error: "The name that you typed is not the name of this key. Nothing was changed."})
		return "", false
	}
	return key, true
}

// roll makes a new version of a key. The form names the current version, so that a form that is sent twice rolls the
// key once, even if both requests arrive together.
func (s *session) roll() {
	key, ok := s.form()
	if !ok {
		return
	}
	end, err := s.rolls.begin(s.r.Context(), key)
	if err != nil {
		s.failed(key, err)
		return
	}
	defer end()
	list, err := s.describe(key)
	if err != nil {
		s.failed(key, err)
		return
	}
	if expect := s.r.URL.Query().Get("expect"); !isCurrent(list, expect) {
		s.showKey(http.StatusConflict, key, change{
			Error: "The key has another current version than the page showed: it was changed since. Nothing was " +
				"changed now."})
		return
	}
	body, err := s.rest(http.MethodPost, keyPath("key/", key), kmswire.AppendRoll(nil, nil))
	if err != nil {
		s.failed(key, err)
		return
	}
	var made struct {
		Version string `json:"versionName"`
	}
	err = json.Unmarshal(body, &made)
	clear(body) // a keystore's answer has the material
	if err != nil {
		s.failed(key, err)
		return
	}
	s.changed(key, "The key was rolled: its current version is "+claviger.Printable(made.Version)+".")
}

// rolls are the keys that forms of this console are rolling now.
type rolls struct {
	mu   sync.Mutex
	keys map[string]chan struct{} // closed at the end of the roll
}

// begin waits until no other form rolls the key. Call end after the roll.
func (r *rolls) begin(ctx context.Context, key string) (end func(), err error) {
	for {
		other := r.enter(key)
		if other == nil {
			return func() { r.leave(key) }, nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, claviger.E("pages.roll", claviger.Unavailable, key, ctx.Err())
		}
	}
}

// enter adds a key. If the key is there already, enter returns the channel that is closed at the end of that roll.
func (r *rolls) enter(key string) (other <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if other, ok := r.keys[key]; ok {
		return other
	}
	if r.keys == nil {
		r.keys = map[string]chan struct{}{}
	}
	r.keys[key] = make(chan struct{})
	return nil
}

// leave removes a key.
func (r *rolls) leave(key string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	close(r.keys[key])
	delete(r.keys, key)
}

// isCurrent reports whether a version is the newest one of the key that exists now.
func isCurrent(list []kmswire.KeyDescription, version string) bool {
	for _, d := range list {
		if n := len(d.Versions); d.Deleted == 0 && n > 0 {
			return d.Versions[n-1].Name == version
		}
	}
	return false
}

// undelete brings back the deleted key that has the version of the form.
func (s *session) undelete() {
	key, ok := s.form()
	if !ok {
		return
	}
	q := url.Values{"trusteeOp": {kmswire.OpUndeleteVersion}, kmswire.ParamVersion: {s.r.URL.Query().Get("version")}}
	if _, err := s.rest(http.MethodPost, keyPath("trustee/key/", key)+"?"+q.Encode(), nil); err != nil {
		s.failed(key, err)
		return
	}
	s.changed(key, "The key is back, with all of its versions.")
}

// failed shows why a change was not made.
func (s *session) failed(key string, err error) {
	s.showKey(problemStatus(err), key, change{Error: s.problemText(err)})
}

// changed leads the browser to the page of the key, which shows the result once. So loading that page again changes
// nothing.
func (s *session) changed(key, text string) {
	id := s.results.put(text, s.user.Name)
	http.Redirect(s.w, s.r, link("/keys", nil, "key", key, "result", id), http.StatusSeeOther)
}

// results are the texts about changes that were made, until their users have read them.
type results struct {
	mu  sync.Mutex
	all map[string]result
}

type result struct {
	text, user string
	at         time.Time
}

// A result that nobody reads is dropped after resultLife; there are at most maxResults.
const (
	resultLife = time.Minute
	maxResults = 1000
)

// put keeps a text for a user, and returns its id.
func (r *results) put(text, user string) (id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.all == nil {
		r.all = map[string]result{}
	}
	for old, kept := range r.all {
		if len(r.all) >= maxResults || time.Since(kept.at) > resultLife {
			delete(r.all, old)
		}
	}
	id = rand.Text()
	r.all[id] = result{text, user, time.Now()}
	return id
}

// take returns a text of the user, once.
func (r *results) take(id, user string) (text string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	kept, ok := r.all[id]
	if !ok || kept.user != user {
		return "", false
	}
	delete(r.all, id)
	return kept.text, true
}

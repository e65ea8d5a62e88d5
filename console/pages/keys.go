package pages

import (
	"cmp"
	"errors"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"claviger"
	"claviger/authz"
	"claviger/kmswire"
)

// keysBody is the body of the page Keys without a key.
type keysBody struct {
	Filter  string
	Sort    string
	Columns []column
	Rows    []keyRow
	Part    part
	Problem string // why there is no list
	Note    string
	Deleted []deletedRow
	// DeletedPart is the part of the deleted keys that the page shows.
	DeletedPart part
	// DeletedProblem is the reason why there is no list of deleted keys.
	DeletedProblem string
}

type keyRow struct {
	Name     string
	Href     string
	Metadata *claviger.Metadata // nil: the user may not read it, or the key is gone
	Why      string             // Metadata is nil
}

type deletedRow struct {
	Name, Href string
	Versions   int
	Deleted    time.Time
	LastUse    time.Time
}

// maxSorted is the largest number of keys whose metadata is read to sort by it.
const maxSorted = 2000

func (s *session) keys() {
	q := s.r.URL.Query()
	if key := q.Get("key"); key != "" {
		s.key(key)
		return
	}
	o := orderOf(q, "name", "created", "versions")
	b := keysBody{Filter: q.Get("filter"), Sort: q.Get("sort"), Columns: []column{
		o.column("/keys", q, "name", "Key"), o.column("/keys", q, "versions", "Versions"),
		o.column("/keys", q, "created", "Created")}}
	if err := s.listKeys(&b, q, o); err != nil {
		b.Problem = s.problemText(err)
	}
	s.listDeleted(&b)
	s.show(http.StatusOK, "keys", "Keys", 0, b)
}

// problemText returns the text of an error for the user. Errors of the REST API have a text for callers; the text of
// others is for the log.
func (s *session) problemText(err error) string {
	if p := (*problem)(nil); errors.As(err, &p) {
		return p.Message
	}
	s.Log.Error("the console cannot show something", "path", s.r.URL.Path, "user", s.user.Name, "err", err)
	return "This cannot be shown. The server's log says why."
}

// problemStatus returns the status of an answer that shows an error: that of the REST API, or else 500.
func problemStatus(err error) int {
	if p := (*problem)(nil); errors.As(err, &p) {
		return p.Status
	}
	return http.StatusInternalServerError
}

// listKeys fills in the rows of the table.
func (s *session) listKeys(b *keysBody, q url.Values, o order) error {
	names, err := s.names()
	if err != nil {
		return err
	}
	names = slices.DeleteFunc(names, func(name string) bool { return !contains(name, b.Filter) })
	slices.Sort(names)
	if o.by != "name" && len(names) > maxSorted {
		b.Note = "Too many keys to sort by this column: they are sorted by name. Filter them first."
		o.by = "name"
	}
	b.Part = partOf("/keys", q, len(names))
	if o.by == "name" {
		if o.down {
			slices.Reverse(names)
		}
		b.Rows = s.keyRows(rows(names, b.Part))
		return nil
	}
	all := s.keyRows(names)
	value := func(r keyRow) (n int64) {
		switch {
		case r.Metadata == nil:
			return -1
		case o.by == "versions":
			return int64(r.Metadata.Versions)
		}
		return r.Metadata.Created.UnixMilli()
	}
	sorted(all, o, func(a, c keyRow) int { return cmp.Compare(value(a), value(c)) })
	b.Rows = rows(all, b.Part)
	return nil
}

// keyRows reads the metadata of keys. The KMS answers several keys at once only if the user may read all of them.
// Otherwise each of the first keys is read alone.
func (s *session) keyRows(names []string) []keyRow {
	list := make([]keyRow, len(names))
	for i, name := range names {
		list[i] = keyRow{Name: name, Href: link("/keys", nil, "key", name)}
	}
	all, err := s.metadata(names)
	for i := range list {
		switch {
		case err == nil:
			list[i].Metadata = all[i]
		case i < rowsAtOnce:
			var alone error
			if list[i].Metadata, alone = s.metadataOf(list[i].Name); alone != nil {
				list[i].Why = s.problemText(alone)
			}
		default:
			list[i].Why = "not read"
		}
		if list[i].Metadata == nil && list[i].Why == "" {
			list[i].Why = "deleted meanwhile"
		}
	}
	return list
}

// listDeleted fills in the deleted keys. The list is left out, with the reason, if the user may not bring keys back.
func (s *session) listDeleted(b *keysBody) {
	// The request would leave a record of a refusal, and this user did not ask for deleted keys.
	if !s.Policy().May(authz.Undelete, s.user, s.Groups) && !s.Policy().May(authz.Purge, s.user, s.Groups) {
		b.DeletedProblem = "you have neither the right UNDELETE nor PURGE (keytrustee.kms.acl.*)."
		return
	}
	list, err := s.deleted()
	if err != nil {
		b.DeletedProblem = s.problemText(err)
		return
	}
	for _, k := range list {
		if !contains(k.Name, b.Filter) {
			continue
		}
		b.Deleted = append(b.Deleted, deletedRow{Name: k.Name, Href: link("/keys", nil, "key", k.Name),
			Versions: len(k.Versions), Deleted: millis(k.Deleted), LastUse: millis(k.LastUse)})
	}
	slices.SortStableFunc(b.Deleted, func(a, c deletedRow) int { return c.Deleted.Compare(a.Deleted) })
	b.DeletedPart = partBy("/keys", s.r.URL.Query(), "deleted", "Deleted keys", len(b.Deleted))
	b.Deleted = rows(b.Deleted, b.DeletedPart)
}

// keyBody is the body of the page Keys for one key.
type keyBody struct {
	Name    string
	Problem string
	Live    *keyView // nil: no key has the name now
	Deleted []keyView
	Ready   int    // ready-made EDEKs
	Origin  string // where the key was born
	Rights  []right
	Change  change
}

type keyView struct {
	kmswire.KeyDescription
	Current           string // name of the newest version
	CurrentSince      time.Time
	Versions          []versionView // newest first; those that the page shows
	Part              part
	CreatedAt, GoneAt time.Time
	Since             time.Time // when the record of uses began
	Notes             []Fact    // attributes and description
}

type versionView struct {
	kmswire.VersionDescription
	At, Used time.Time
}

// right is a row of the user's rights on a key.
type right struct {
	Operation string
	Allowed   bool
	Href      string // of the page Access
}

// shownRights are the requests whose rights the page of a key shows.
var shownRights = []string{"GET_METADATA", "GENERATE_EEK", "DECRYPT_EEK", "ROLL_NEW_VERSION", "DELETE_KEY",
	"UNDELETE_KEY"}

// key shows one key, and the deleted keys of its name.
func (s *session) key(name string) { s.showKey(http.StatusOK, name, change{}) }

// showKey shows a key after a change, which may have failed.
func (s *session) showKey(status int, name string, c change) {
	b := keyBody{Name: name, Change: c}
	list, err := s.describe(name)
	if err != nil {
		var why int
		if b.Problem, why = s.whyNotShown(name, err); status == http.StatusOK {
			status = why
		}
	}
	for _, d := range list {
		v := describeKey(d)
		v.Part = partBy("/keys", s.r.URL.Query(), "versions", "Versions", len(v.Versions))
		v.Versions = rows(v.Versions, v.Part)
		if d.Deleted == 0 {
			b.Live = &v
		} else {
			b.Deleted = append(b.Deleted, v)
		}
	}
	if v := b.Live; v != nil {
		b.Ready = s.Ready(name)
		b.Origin = s.Origin(s.r.Context(), &claviger.Metadata{Name: v.Name, Attributes: v.Attributes,
			Created: v.CreatedAt}, s.details)
	}
	if len(list) > 0 {
		b.Rights = s.rights(name, list[0].Attributes)
	}
	b.Change.prepare(s, &b)
	s.show(status, "key", "Key "+claviger.Printable(shortName(name)), 0, b)
}

// whyNotShown returns the text and the status for a key that cannot be described. The KMS answers 500 if there is no
// such key, as Hadoop does.
func (s *session) whyNotShown(key string, err error) (text string, status int) {
	if m, e := s.metadataOf(key); e == nil && m == nil {
		return "There is no key of this name.", http.StatusNotFound
	}
	return s.problemText(err), problemStatus(err)
}

// shortName cuts a long name for the title of a page.
func shortName(name string) string {
	const most = 60
	if r := []rune(name); len(r) > most {
		return string(r[:most]) + "…"
	}
	return name
}

func describeKey(d kmswire.KeyDescription) keyView {
	v := keyView{KeyDescription: d, CreatedAt: millis(d.Created), GoneAt: millis(d.Deleted), Since: millis(d.UsesSince)}
	for _, version := range slices.Backward(d.Versions) {
		v.Versions = append(v.Versions, versionView{version, millis(version.Created), millis(version.LastUse)})
	}
	if len(v.Versions) > 0 {
		v.Current, v.CurrentSince = v.Versions[0].Name, v.Versions[0].At
	}
	v.Notes = []Fact{{Name: "Cipher", Value: d.Cipher}}
	if d.Description != nil {
		v.Notes = append(v.Notes, Fact{Name: "Description", Value: *d.Description})
	}
	for name, value := range d.Attributes {
		v.Notes = append(v.Notes, Fact{Name: "Attribute " + name, Value: value})
	}
	slices.SortStableFunc(v.Notes[1:], func(a, b Fact) int { return strings.Compare(a.Name, b.Name) })
	return v
}

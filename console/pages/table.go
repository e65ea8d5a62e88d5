package pages

import (
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// rowsAtOnce is the number of rows that a page shows of a long table.
const rowsAtOnce = 50

// column is the head of a column by which a table can be sorted.
type column struct {
	Title string
	Href  string // sorts by the column, or reverses the order
	Sort  string // aria-sort: "ascending" or "descending"; "" if the table is not sorted by it
}

// order is the order of a table, from the parameter sort of the URL: the name of a column, with a "-" before it for
// descending.
type order struct {
	by   string
	down bool
}

// orderOf reads the order. known are the names of columns; the first is the default.
func orderOf(q url.Values, known ...string) order {
	by, down := strings.CutPrefix(q.Get("sort"), "-")
	if !slices.Contains(known, by) {
		return order{by: known[0]}
	}
	return order{by, down}
}

// column returns the head of a column.
func (o order) column(path string, q url.Values, name, title string) column {
	c := column{Title: title}
	next := name
	if o.by == name {
		c.Sort = "ascending"
		if next = "-" + name; o.down {
			c.Sort, next = "descending", name
		}
	}
	c.Href = link(path, q, "sort", next, "from", "")
	return c
}

// sorted sorts rows in the order; compare compares two rows by the column.
func sorted[T any](rows []T, o order, compare func(a, b T) int) {
	slices.SortStableFunc(rows, func(a, b T) int {
		if o.down {
			a, b = b, a
		}
		return compare(a, b)
	})
}

// link returns a path with the parameters of q, some of which are replaced: pairs of names and values. An empty value
// removes the parameter.
func link(path string, q url.Values, pairs ...string) string {
	all := url.Values{}
	for name, values := range q {
		if name != "user.name" && name != "delegation" && name != "result" { // they belong to one request
			all[name] = values
		}
	}
	for i := 0; i < len(pairs); i += 2 {
		if all.Del(pairs[i]); pairs[i+1] != "" {
			all.Set(pairs[i], pairs[i+1])
		}
	}
	if len(all) == 0 {
		return path
	}
	return path + "?" + all.Encode()
}

// part is the part of a long table that a page shows.
type part struct {
	Of             string // what the rows are
	From, To, All  int    // rows are counted from 1
	Earlier, Later string // links; "" if there are no such rows
}

// partOf returns the part that the parameter from of the URL begins.
func partOf(path string, q url.Values, all int) part { return partBy(path, q, "from", "Rows", all) }

// partBy returns the part that a parameter of the URL begins. of says what the rows are.
func partBy(path string, q url.Values, parameter, of string, all int) part {
	from, err := strconv.Atoi(q.Get(parameter))
	if err != nil || from < 1 || from > all {
		from = 1
	}
	p := part{Of: of, From: min(from, all), To: min(from+rowsAtOnce-1, all), All: all}
	if from > 1 {
		p.Earlier = link(path, q, parameter, strconv.Itoa(max(1, from-rowsAtOnce)))
	}
	if p.To < all {
		p.Later = link(path, q, parameter, strconv.Itoa(from+rowsAtOnce))
	}
	return p
}

// rows returns the rows of the part.
func rows[T any](list []T, p part) []T {
	if p.All == 0 {
		return nil
	}
	return list[p.From-1 : p.To]
}

// contains reports whether a text contains a filter; case does not matter.
func contains(text, filter string) bool {
	return filter == "" || strings.Contains(strings.ToLower(text), strings.ToLower(filter))
}

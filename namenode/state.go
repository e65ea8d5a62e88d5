package namenode

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"
)

// State is what a running NameNode says about itself. Its pages /jmx and /conf are open to every user who may log in,
// unless the site restricts them.
type State struct {
	URL     string // of the NameNode
	Role    string // "active", "standby" or "observer"
	Version string // of Hadoop
	// Conf are the properties that the NameNode runs with, with the defaults: not those that its files have now.
	Conf map[string]string
	// Generate is how long the NameNode took to get an EDEK for a new file, and WarmUp how long it took to fill its
	// cache for the keys of the zones, after its start.
	Generate, WarmUp Timing

	Date     time.Time // of an answer; zero if it has none
	DateSent time.Time // when the request for that answer was sent
	DateTook time.Duration

	Err error // why the NameNode's state is not known
}

// Timing is a counter of the NameNode.
type Timing struct {
	Known bool          // false for a Hadoop that does not count it
	Count int64         // since the start
	Mean  time.Duration // of the newest measurements
}

// The beans of a NameNode, and the pages that are read.
const (
	beanStatus   = "Hadoop:service=NameNode,name=NameNodeStatus"
	beanInfo     = "Hadoop:service=NameNode,name=NameNodeInfo"
	beanActivity = "Hadoop:service=NameNode,name=NameNodeActivity"

	pageConf = "/conf"
	// maxPage bounds a page. /conf has some 200 KB.
	maxPage = 16 << 20
)

// States asks each NameNode.
func (c *Client) States(ctx context.Context) []State {
	states := make([]State, 0, len(c.urls))
	for _, base := range c.urls {
		s := State{URL: base}
		s.Err = c.state(ctx, base, &s)
		states = append(states, s)
	}
	return states
}

// state reads the pages of one NameNode.
func (c *Client) state(ctx context.Context, base string, s *State) error {
	var status struct{ State string }
	s.DateSent = time.Now()
	header, err := c.bean(ctx, base, beanStatus, &status)
	if err != nil {
		return err
	}
	if s.DateTook = time.Since(s.DateSent); header.Get("Date") != "" {
		if s.Date, err = http.ParseTime(header.Get("Date")); err != nil {
			return fmt.Errorf("the answer has the date %.40q", header.Get("Date"))
		}
	}
	var info struct{ SoftwareVersion string }
	if _, err = c.bean(ctx, base, beanInfo, &info); err != nil {
		return err
	}
	s.Role, s.Version = status.State, info.SoftwareVersion
	var counters struct {
		GenerateEDEKTimeNumOps, WarmUpEDEKTimeNumOps   *int64
		GenerateEDEKTimeAvgTime, WarmUpEDEKTimeAvgTime float64 // milliseconds
	}
	if _, err = c.bean(ctx, base, beanActivity, &counters); err != nil {
		return err
	}
	s.Generate = timing(counters.GenerateEDEKTimeNumOps, counters.GenerateEDEKTimeAvgTime)
	s.WarmUp = timing(counters.WarmUpEDEKTimeNumOps, counters.WarmUpEDEKTimeAvgTime)
	var conf struct {
		Properties []struct{ Key, Value string }
	}
	if _, err = c.page(ctx, base, pageConf, &conf); err != nil {
		return err
	}
	s.Conf = make(map[string]string, len(conf.Properties))
	for _, p := range conf.Properties {
		s.Conf[p.Key] = p.Value
	}
	return nil
}

func timing(count *int64, mean float64) Timing {
	if count == nil {
		return Timing{}
	}
	return Timing{true, *count, time.Duration(mean * float64(time.Millisecond))}
}

// bean reads the attributes of a bean into out.
func (c *Client) bean(ctx context.Context, base, name string, out any) (http.Header, error) {
	var beans struct{ Beans []json.RawMessage }
	header, err := c.page(ctx, base, "/jmx?qry="+url.QueryEscape(name), &beans)
	if err != nil {
		return nil, err
	}
	if len(beans.Beans) != 1 {
		return nil, fmt.Errorf("the answer has no bean %s: is this a NameNode?", name)
	}
	if err := json.Unmarshal(beans.Beans[0], out); err != nil {
		return nil, fmt.Errorf("the bean %s: %w", name, err)
	}
	return header, nil
}

// page reads a page in JSON into out.
func (c *Client) page(ctx context.Context, base, page string, out any) (http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, c.conf.Stall)
	defer cancel()
	resp, err := c.do(ctx, http.MethodGet, base, page)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxPage+1))
	if err == nil && len(body) > maxPage {
		err = errors.New("it is too long")
	}
	if err == nil {
		err = json.Unmarshal(body, out)
	}
	if err != nil {
		return nil, fmt.Errorf("the page %s is no answer of a NameNode: %w", page, err)
	}
	return resp.Header, nil
}

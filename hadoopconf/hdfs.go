package hadoopconf

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

// LoadHDFS reads the configuration of HDFS: core-site.xml and hdfs-site.xml of a folder. At least one of them must
// exist. lookup returns environment variables, as os.LookupEnv does.
func LoadHDFS(dir string, lookup func(string) (string, bool)) (*Conf, error) {
	c := New(dir, lookup)
	found := false
	for _, name := range []string{"core-site.xml", "hdfs-site.xml"} {
		switch err := c.AddFile(filepath.Join(dir, name), false); {
		case err == nil:
			found = true
		case !errors.Is(err, fs.ErrNotExist):
			return nil, err
		}
	}
	if !found {
		return nil, fmt.Errorf("%s has neither core-site.xml nor hdfs-site.xml; name the folder of HDFS' "+
			"configuration, for example /etc/hadoop/conf", dir)
	}
	return c, nil
}

// SetValue returns the value of a property that a file, a flag or the environment sets, and the place that
// sets it. Built-in defaults do not count.
func (c *Conf) SetValue(name string) (value, where string, ok bool) {
	p, ok := c.Lookup(name)
	if !ok || p.File == "" {
		return "", "", false
	}
	value, _ = c.Get(name)
	return value, p.Where(), true
}

package kmsapi_test

import (
	"encoding/json"
	"fmt"
	"log/slog"

	"claviger/kmsapi"
)

// recordedOperations configures the servlets as on the recorded server.
func recordedOperations() kmsapi.Operations {
	return kmsapi.Operations{
		Port: 17600, Level: new(slog.LevelVar),
		Properties: func() ([]kmsapi.Property, error) {
			return []kmsapi.Property{
				{Name: "hadoop.kms.http.host", Written: "0.0.0.0", Value: "0.0.0.0", Source: "kms-default.xml"},
				{Name: "hadoop.kms.http.port", Written: "17600", Value: "17600",
					Source: "file:/srv/hadoop/kms1/kms-site.xml"},
			}, nil
		},
	}
}

// notOurs are the beans, and attributes as BEAN.ATTRIBUTE, that only the recorded server shows.
// docs/hadoop-divergences/configuration.md lists them under D-jmx.
var notOurs = words(`Hadoop:service=KMS,name=UgiMetrics java.lang:type=Memory.ObjectPendingFinalizationCount`)

// sameBeans compares answers of /jmx. They must have the same beans, attributes and kinds of
// values, and the same strings. It returns a difference, or "", and adds the missing parts of
// notOurs to missed.
func sameBeans(got, want any, missed map[string]bool) string {
	g, w := beansOf(got), beansOf(want)
	for name, attributes := range w {
		ours, ok := g[name]
		if notOurs[name] && !ok {
			missed[name] = true
			continue
		}
		if !ok {
			return "there is no bean " + name
		}
		for a, v := range attributes {
			full := name + "." + a
			o, ok := ours[a]
			switch {
			case notOurs[full] && !ok:
				missed[full] = true
			case !ok:
				return "there is no " + full
			case kindOf(o) != kindOf(v):
				return fmt.Sprintf("%s is a %s, want a %s", full, kindOf(o), kindOf(v))
			case kindOf(v) == "string" && a != "tag.Hostname" && o != v:
				if a == "modelerType" && name == "java.lang:type=Memory" {
					missed[full] = true // Java's class
					continue
				}
				return fmt.Sprintf("%s is %v, want %v", full, o, v)
			}
		}
		for a := range ours {
			if _, ok := attributes[a]; !ok {
				return "the recording has no " + name + "." + a
			}
		}
	}
	for name := range g {
		if w[name] == nil {
			return "the recording has no bean " + name
		}
	}
	return ""
}

func beansOf(answer any) map[string]map[string]any {
	byName := map[string]map[string]any{}
	top, _ := answer.(map[string]any)
	list, _ := top["beans"].([]any)
	for _, b := range list {
		attributes, _ := b.(map[string]any)
		name, _ := attributes["name"].(string)
		byName[name] = attributes
	}
	return byName
}

func kindOf(v any) string {
	switch v := v.(type) {
	case json.Number:
		return "number"
	case string:
		return "string"
	case map[string]any:
		return fmt.Sprint("object of ", len(v))
	}
	return fmt.Sprintf("%T", v)
}

// Charsets makes charsets.golden: what Hadoop's Configuration reads from the
// charset-*.xml files of this folder, a line a file. Run it here, with the jars of
// Hadoop's client.
import java.io.*;
import java.util.*;
import org.apache.hadoop.conf.Configuration;
import org.apache.hadoop.fs.Path;
public class Charsets {
  public static void main(String[] a) throws Exception {
    PrintStream out = new PrintStream(new FileOutputStream(FileDescriptor.out), true, "UTF-8");
    File[] files = new File(".").listFiles((d, n) -> n.startsWith("charset-"));
    Arrays.sort(files);
    for (File f : files) {
      Configuration c = new Configuration(false);
      c.addResource(new Path(f.toURI()));
      String v;
      try { v = "[" + c.get("a.value") + "]"; } catch (RuntimeException e) { v = "!"; }
      out.println(f.getName() + "=" + v);
    }
  }
}
